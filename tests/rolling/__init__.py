"""A rolling upgrade under load, measured: what mail clients notice while every process is replaced."""
