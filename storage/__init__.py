"""The relational database: Optuna's storage, our records beside it, and leases."""
