-- Our tables of schema version 2 as that program made them in postgresql.
CREATE TABLE remember_schema (
  id INTEGER NOT NULL,
  version INTEGER NOT NULL,
  PRIMARY KEY (id)
);
CREATE TABLE remember_studies (
  name VARCHAR(512) NOT NULL,
  config TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  slots INTEGER NOT NULL,
  seed BIGINT NOT NULL,
  created_at_seconds DOUBLE PRECISION NOT NULL,
  PRIMARY KEY (name)
);
CREATE TABLE remember_verdicts (
  digest VARCHAR(64) NOT NULL,
  label VARCHAR(16) NOT NULL,
  PRIMARY KEY (digest)
);
CREATE TABLE remember_agreements (
  id SERIAL NOT NULL,
  study VARCHAR(512) NOT NULL,
  judge VARCHAR(255) NOT NULL,
  digest VARCHAR(64) NOT NULL,
  labelled INTEGER NOT NULL,
  payload TEXT NOT NULL,
  of_study TEXT NOT NULL,
  recorded_at_seconds DOUBLE PRECISION NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY(study) REFERENCES remember_studies (name) ON DELETE CASCADE
);
CREATE TABLE remember_floors (
  id SERIAL NOT NULL,
  study VARCHAR(512) NOT NULL,
  name VARCHAR(32) NOT NULL,
  recall DOUBLE PRECISION,
  payload TEXT NOT NULL,
  PRIMARY KEY (id),
  UNIQUE (study, name),
  FOREIGN KEY(study) REFERENCES remember_studies (name) ON DELETE CASCADE
);
CREATE TABLE remember_leases (
  study VARCHAR(512) NOT NULL,
  trial INTEGER NOT NULL,
  owner VARCHAR(512),
  fence INTEGER NOT NULL,
  expires_at_seconds DOUBLE PRECISION NOT NULL,
  PRIMARY KEY (study, trial),
  FOREIGN KEY(study) REFERENCES remember_studies (name) ON DELETE CASCADE
);
CREATE TABLE remember_prompts (
  id SERIAL NOT NULL,
  study VARCHAR(512) NOT NULL,
  digest VARCHAR(64) NOT NULL,
  text TEXT NOT NULL,
  style VARCHAR(32) NOT NULL,
  phrasing VARCHAR(32) NOT NULL,
  subject VARCHAR(64) NOT NULL,
  question TEXT NOT NULL,
  accepted TEXT NOT NULL,
  templated BOOLEAN NOT NULL,
  ring VARCHAR(32),
  PRIMARY KEY (id),
  UNIQUE (study, digest),
  FOREIGN KEY(study) REFERENCES remember_studies (name) ON DELETE CASCADE
);
CREATE TABLE remember_sittings (
  id SERIAL NOT NULL,
  study VARCHAR(512) NOT NULL,
  owner VARCHAR(512) NOT NULL,
  device VARCHAR(64) NOT NULL,
  began_at_seconds DOUBLE PRECISION NOT NULL,
  seen_at_seconds DOUBLE PRECISION NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY(study) REFERENCES remember_studies (name) ON DELETE CASCADE
);
CREATE TABLE remember_trials (
  study VARCHAR(512) NOT NULL,
  number INTEGER NOT NULL,
  asked_index INTEGER NOT NULL,
  recipe TEXT NOT NULL,
  sampling TEXT NOT NULL,
  seed BIGINT NOT NULL,
  state VARCHAR(16) NOT NULL,
  reason TEXT,
  trained_tokens BIGINT,
  generated_tokens BIGINT,
  seconds DOUBLE PRECISION,
  last_epoch INTEGER,
  highest_learning_rate DOUBLE PRECISION,
  PRIMARY KEY (study, number),
  UNIQUE (study, asked_index),
  FOREIGN KEY(study) REFERENCES remember_studies (name) ON DELETE CASCADE
);
CREATE TABLE remember_measurements (
  id SERIAL NOT NULL,
  study VARCHAR(512) NOT NULL,
  trial INTEGER,
  epoch INTEGER NOT NULL,
  sampling VARCHAR(128) NOT NULL,
  purpose VARCHAR(16) NOT NULL,
  version INTEGER NOT NULL,
  recall DOUBLE PRECISION,
  knowledge_loss DOUBLE PRECISION,
  payload TEXT NOT NULL,
  adapter TEXT,
  recorded_at_seconds DOUBLE PRECISION NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY(study, trial) REFERENCES remember_trials (study, number) ON DELETE CASCADE,
  UNIQUE (study, trial, epoch, sampling, purpose, version),
  FOREIGN KEY(study) REFERENCES remember_studies (name) ON DELETE CASCADE
);
CREATE TABLE remember_answers (
  measurement_id INTEGER NOT NULL,
  position INTEGER NOT NULL,
  prompt_id INTEGER NOT NULL,
  text TEXT NOT NULL,
  tokens INTEGER NOT NULL,
  label VARCHAR(16) NOT NULL,
  judge VARCHAR(255) NOT NULL,
  PRIMARY KEY (measurement_id, position),
  FOREIGN KEY(measurement_id) REFERENCES remember_measurements (id) ON DELETE CASCADE,
  FOREIGN KEY(prompt_id) REFERENCES remember_prompts (id) ON DELETE CASCADE
);
CREATE TABLE remember_rejudgements (
  measurement_id INTEGER NOT NULL,
  judge VARCHAR(255) NOT NULL,
  payload TEXT NOT NULL,
  recorded_at_seconds DOUBLE PRECISION NOT NULL,
  PRIMARY KEY (measurement_id, judge),
  FOREIGN KEY(measurement_id) REFERENCES remember_measurements (id) ON DELETE CASCADE
);
