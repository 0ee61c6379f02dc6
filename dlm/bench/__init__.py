"""What the lock manager does in time, measured on real daemons: ``python -m dlm.bench.failover``."""
