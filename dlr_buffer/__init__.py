"""dlr-buffer: a durable local queue for the delivery receipts owed to Smartswitch.

Only the version lives here, so that ``import dlr_buffer`` costs nothing.
"""

__version__ = "0.1.0"
