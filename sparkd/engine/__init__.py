"""The container and what runs in it: container, scripts, patches, process, log, endpoint."""
