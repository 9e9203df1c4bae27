"""Traffic redirection: encodes rules as nftables or iptables text; applies, verifies and undoes them."""
