"""Directories on any file system: atomic writes, retries, and the lease that lets one process write."""
