"""``dlr-buffer doctor``: looks at an installation from outside and says in plain words what to mend.

`examination` asks everything in order and is what the command line calls. Each other module knows one thing that can
be wrong and makes `findings` of it: `configuration` (and the files of secrets), `groups`, `units` (systemd's),
`sockets`, `running` (what the daemon says of itself), `queue`, `space`, `machine` (clock, versions, limits), `upstream`
(each account's server); `access` tells who may do what to a file. Nothing here changes anything, but for
`upstream.probe`, which sends one receipt and is only called when asked for by name.
"""
