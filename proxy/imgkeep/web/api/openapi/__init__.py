"""The OpenAPI document: operations written by hand, schemas made from the Structs of responses."""
