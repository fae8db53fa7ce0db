"""Socket redirect as the agent sees it: who opted out, what is accelerated and why not, does it work here."""
