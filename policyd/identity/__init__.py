"""Proving who asks: tokens, signed claims, certificates. What they may do is for the core and the entitlements."""
