"""The feature index of an SAE: what each feature fires on, what it does, what it is called, and how to find it."""
