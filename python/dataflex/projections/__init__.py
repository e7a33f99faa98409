"""The kinds of projection that come with dataflex, and the contract of others."""
