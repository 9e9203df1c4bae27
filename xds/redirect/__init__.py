"""Traffic redirection: pure rules into nftables or iptables text, then apply, verify and undo it."""
