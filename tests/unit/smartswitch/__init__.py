"""The pure parts of talking to Smartswitch."""
