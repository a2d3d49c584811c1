package sim

// lieSync nX on|off: the caches of its disks answer fdatasync before anything is
// durable. One node of three may: what a power cut takes from it the others have.
func (p *player) lieSync(a []string) error {
	n, err := p.node(a[0])
	if err != nil {
		return err
	}
	p.w.profile.rotNode = n.index
	for _, d := range n.disks {
		d.syncLies = a[1] == "on"
		d.rotten++ // what it holds proves nothing
	}
	return nil
}
