"""One file per objective: what is seen, what is predicted, in which space."""
