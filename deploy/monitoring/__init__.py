"""What Prometheus and Grafana show of mailgroup, as code.

``python -m deploy.monitoring write`` makes the dashboards (deploy/grafana/dashboards/*.json) out of flow.py,
services.py and servers.py, and the rules for Prometheus' operator (deploy/k8s/components/monitoring/rules.yaml) out of
deploy/prometheus/rules.yml; ``check`` tells whether the files are what would be written.
"""
