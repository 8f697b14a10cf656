"""The durable queue. Only this package knows SQLAlchemy.

`store` is its face, see there for how the parts fit.
"""
