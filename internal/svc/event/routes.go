package event

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/model"
)

type listInput struct {
	Limit int  `query:"limit" minimum:"1" maximum:"10000" default:"100" doc:"how many of the newest"`
	Watch bool `query:"watch" doc:"go on as events come: one JSON value a line"`
}

// Routes adds the operations on events.
func (l *Log) Routes(r *api.Router) {
	op := api.Op("list-events", http.MethodGet, "/v1/events", "List events, oldest first, or follow them")
	huma.Register(r, op, func(ctx context.Context, in *listInput) (*huma.StreamResponse, error) {
		events, rev, err := l.List(ctx, in.Limit)
		if err != nil {
			return nil, err
		}
		if !in.Watch {
			return api.JSON(events), nil
		}
		return api.Stream(func(ctx context.Context, write func(any) error) error {
			for _, e := range events {
				if err := write(e); err != nil {
					return err
				}
			}
			return l.Watch(ctx, rev, func(e model.Event) error { return write(e) })
		}), nil
	})
}
