"""The flusher: brings pending receipts to Smartswitch, one `AccountFlusher` an account.

`account` has the whole flow in its docstring; `batching` closes batches, `suspicion` remembers who may be to
blame, `ports` says what the flusher needs of others. Only `smartswitch` knows HTTP and only `storage` knows
SQL.
"""
