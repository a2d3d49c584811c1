package node

// services lists the reconcilers and routes of a configured node, in the order
// in which they are started. What a service needs it takes from d.
func services(d Deps) []Service {
	return []Service{}
}
