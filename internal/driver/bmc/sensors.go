package bmc

import (
	"context"
	"net/http"

	"roseau/internal/base/errs"
)

// health is the part of a resource's status that counts.
type health struct{ State, Health string }

// Sensors implements Controller: the sensors of the system's chassis, by the
// collection of newer services or by the two pages of older ones.
func (r *redfish) Sensors(ctx context.Context) ([]Sensor, error) {
	list, err := r.sensors(ctx)
	return list, r.fail("read the sensors of", err)
}

func (r *redfish) sensors(ctx context.Context) ([]Sensor, error) {
	s, err := r.system(ctx)
	if err != nil {
		return nil, err
	}
	if len(s.Links.Chassis) == 0 {
		return nil, errs.New(errs.Unavailable, "its system names no chassis")
	}
	var c struct{ Sensors, Thermal, Power link }
	if err := r.do(ctx, http.MethodGet, s.Links.Chassis[0].ID, "", nil, &c); err != nil {
		return nil, err
	}
	if c.Sensors.ID != "" {
		return r.collection(ctx, c.Sensors.ID)
	}
	if c.Thermal.ID == "" && c.Power.ID == "" {
		return nil, errs.New(errs.Unavailable, "its chassis has no sensors")
	}
	return r.pages(ctx, c.Thermal.ID, c.Power.ID)
}

func (r *redfish) collection(ctx context.Context, path string) (out []Sensor, err error) {
	list, err := r.members(ctx, path)
	if err != nil {
		return nil, err
	}
	for _, l := range list {
		var v struct {
			Name, ReadingUnits string
			Reading            *float64
			Status             health
		}
		if err := r.do(ctx, http.MethodGet, l.ID, "", nil, &v); err != nil {
			return nil, err
		}
		out = append(out, reading(v.Name, v.ReadingUnits, v.Reading, v.Status))
	}
	return out, nil
}

func reading(name, unit string, v *float64, st health) Sensor {
	s := Sensor{Name: name, Unit: unit, Health: st.Health, NoValue: v == nil}
	switch unit {
	case "Cel":
		s.Unit = "C"
	case "Percent":
		s.Unit = "%"
	}
	if v != nil {
		s.Value = *v
	}
	return s
}

func (r *redfish) pages(ctx context.Context, thermal, power string) (out []Sensor, err error) {
	if thermal != "" {
		var t struct {
			Temperatures []struct {
				Name           string
				ReadingCelsius *float64
				Status         health
			}
			Fans []struct {
				Name, FanName, ReadingUnits string
				Reading                     *float64
				Status                      health
			}
		}
		if err := r.do(ctx, http.MethodGet, thermal, "", nil, &t); err != nil {
			return nil, err
		}
		for _, v := range t.Temperatures {
			out = append(out, reading(v.Name, "Cel", v.ReadingCelsius, v.Status))
		}
		for _, v := range t.Fans {
			if v.Name == "" {
				v.Name = v.FanName
			}
			out = append(out, reading(v.Name, v.ReadingUnits, v.Reading, v.Status))
		}
	}
	if power != "" {
		var p struct {
			PowerControl []struct {
				Name               string
				PowerConsumedWatts *float64
				Status             health
			}
			Voltages []struct {
				Name         string
				ReadingVolts *float64
				Status       health
			}
		}
		if err := r.do(ctx, http.MethodGet, power, "", nil, &p); err != nil {
			return nil, err
		}
		for _, v := range p.PowerControl {
			out = append(out, reading(v.Name, "W", v.PowerConsumedWatts, v.Status))
		}
		for _, v := range p.Voltages {
			out = append(out, reading(v.Name, "V", v.ReadingVolts, v.Status))
		}
	}
	return out, nil
}
