"""Everything that knows Istio: what it is installed with, and what joins it to our datapath."""
