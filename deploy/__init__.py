"""What brings the services onto machines."""
