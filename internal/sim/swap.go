package sim

import "errors"

// swap nX nY: the disks of two nodes without power change places. The same again puts
// them back.
func (p *player) swap(a []string) error {
	list, err := p.nodes(a)
	if err != nil {
		return err
	}
	if len(list) != 2 || list[0] == list[1] || list[0].powered || list[1].powered {
		return errors.New("want two nodes without power")
	}
	x, y := list[0].disks, list[1].disks
	if len(x) != len(y) {
		return errors.New("want nodes with as many disks")
	}
	for k := range x {
		x[k].durable, y[k].durable = y[k].durable, x[k].durable
		x[k].rotten, y[k].rotten = y[k].rotten, x[k].rotten
		x[k].foreign, y[k].foreign = !x[k].foreign, !y[k].foreign
	}
	return nil
}
