"""``feedmono verify``: the sink held against the ledger."""
