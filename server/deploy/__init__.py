"""The coordinator's deployment: certificates, the processes it consists of, and the runs that are started on them."""
