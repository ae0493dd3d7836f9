"""Several workers of one machine: supervisor, and leases, leader and peers by files and Unix sockets."""
