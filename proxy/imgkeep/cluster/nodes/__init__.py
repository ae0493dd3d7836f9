"""Several machines with one PostgreSQL: membership, and leases, leader and peers by its tables and by TCP."""
