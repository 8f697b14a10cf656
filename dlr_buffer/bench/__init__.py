"""``dlr-buffer bench``: what this machine and its disk let the daemon do, in about a minute.

`measuring` measures, with a daemon and a stand-in of `dlr_buffer.throwaway`; `disk` what the disk does on its own,
`load` plays the apps, `limits` says what the figures mean, and `printing` writes what the user reads. A queue in
use is never touched: everything is made in a new folder, which is removed.
"""
