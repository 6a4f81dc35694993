"""What a business unit runs: the thin ClientApp, and behind it the vault that holds data, trainer and ledger."""
