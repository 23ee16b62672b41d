"""Talking over the link: authenticated exchange of reports and intents between the nodes' daemons."""
