"""The signals that ask a process to end."""

import signal

# Ctrl-C, what ends a service or a batch job, and what a terminal sends that is closed (Windows has none).
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
