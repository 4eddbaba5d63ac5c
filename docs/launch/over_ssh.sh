#!/usr/bin/env bash
# One worker per host and GPU over ssh: STUDY=my-study docs/launch/over_ssh.sh gpu1:0 gpu1:1 gpu2:0
# Every host needs this folder at the same path (or shared), and OPTUNA_STORAGE in ~/.remember-env.
set -euo pipefail
: "${STUDY:?names no study}"
here=$(pwd)
pids=()
for place in "$@"; do
  host=${place%%:*}
  device=cuda:${place##*:}
  [[ $place == *:* ]] || device=auto
  # -tt: a Ctrl-C here hangs the remote terminal up, and the worker saves its trials.
  ssh -tt "$host" "cd $(printf %q "$here") && . ~/.remember-env && exec .venv/bin/remember worker \
    --name $(printf %q "$STUDY") --device $device" </dev/null &
  pids+=($!)
done
trap 'kill "${pids[@]}" 2>/dev/null' INT TERM
wait "${pids[@]}"
