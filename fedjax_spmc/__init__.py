"""fedjax_spmc: federated learning under backdoor attack, simulated as pure functions over stacked pytrees."""
