"""
A store in a bucket of a remote service: the same store on each, over the client of the service (`BucketClient`).

`s3`, `gcs`, `azure` and `cloudinary` have the clients. This package imports none of them.
"""
