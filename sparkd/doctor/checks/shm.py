"""Layer shm."""
