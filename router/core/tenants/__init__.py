"""Keys, tenants' rules, quotas, the fair queue, and the budget of memory. Pure."""
