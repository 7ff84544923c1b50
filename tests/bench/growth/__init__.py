"""Cost as work grows: streams, bodies, links, a slow disk, a large spool, instances."""
