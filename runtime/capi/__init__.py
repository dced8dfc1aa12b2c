"""libmegrez: the runtime for C and what can call C. megrez.c hands every call to host.py, in the same process."""
