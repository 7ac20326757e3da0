"""Directories on any file system: atomic writes, retries of transient errors, and exclusive leases."""
