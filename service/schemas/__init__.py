"""Request and response models of the HTTP interface, with examples. openapi.json is made from them."""
