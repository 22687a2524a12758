"""RabbitMQ: topology, payloads, publishing with confirms, consuming in batches. The only package that imports pika."""
