"""Deployment: containers, Kubernetes, one machine without containers, monitoring; and checks of the checkout."""
