"""Search over merge configs: sweeps and tuning."""
