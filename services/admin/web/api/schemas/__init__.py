"""The schemas of the REST API's requests and responses; /api/openapi.json is generated from them."""
