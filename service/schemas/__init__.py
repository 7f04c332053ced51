"""Request and response models of the HTTP interface, with examples: what openapi.json is made of."""
