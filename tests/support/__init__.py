"""What tests share: factories, processes, scratch databases, hosts."""
