"""``feedmono compare``: two sets of trades, held against each other."""
