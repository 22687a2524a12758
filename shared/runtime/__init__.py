"""The process: start and stop, health and metrics over HTTP, logs, the queue worker."""
