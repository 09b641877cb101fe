package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Every plot has a ground of its own, so that it can be read whatever is around it.
const plotStyle = `<style>
text { font: 13px sans-serif; fill: #24292f }
.title { font-weight: bold }
.ground { fill: #ffffff }
.grid { stroke: #d8dee4 }
.mark { stroke: #24292f; stroke-dasharray: 4 3 }
.c0 { stroke: #0969da; fill: #0969da } .c1 { stroke: #bc4c00; fill: #bc4c00 }
.line { fill: none; stroke-width: 2.5 }
text.c0, text.c1 { stroke: none }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.ground { fill: #161b22 }
.grid { stroke: #373e47 }
.mark { stroke: #e6edf3 }
.c0 { stroke: #58a6ff; fill: #58a6ff } .c1 { stroke: #f0883e; fill: #f0883e }
.line { fill: none }
}
</style>
`

// drawing is an SVG that is being written.
type drawing struct{ strings.Builder }

func newDrawing(width, height int, title string) *drawing {
	d := new(drawing)
	fmt.Fprintf(d, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d">`+"\n", width, height, width, height)
	fmt.Fprintf(d, "<title>%s</title>\n%s", html.EscapeString(title), plotStyle)
	fmt.Fprintf(d, `<rect class="ground" width="%d" height="%d" rx="6"/>`+"\n", width, height)
	d.text(20, 26, "title", "start", title)
	return d
}

func (d *drawing) text(x, y float64, class, anchor, text string) {
	fmt.Fprintf(d, `<text x="%.1f" y="%.1f" class="%s" text-anchor="%s">%s</text>`+"\n", x, y, class, anchor, html.EscapeString(text))
}

func (d *drawing) line(x1, y1, x2, y2 float64, class string) {
	fmt.Fprintf(d, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" class="%s"/>`+"\n", x1, y1, x2, y2, class)
}

func (d *drawing) end() string { return d.String() + "</svg>\n" }

// plotCurve draws a curve's lines: the logarithm of x, and y from nought.
func plotCurve(c Curve) string {
	const width, height, left, right, top, bottom = 640, 350, 80, 100, 66, 50
	d := newDrawing(width, height, c.Name)
	most, first, last := 0.0, c.Lines[0].X[0], c.Lines[0].X[0]
	for _, l := range c.Lines {
		for i := range l.X {
			most, first, last = max(most, l.Y[i]), min(first, l.X[i]), max(last, l.X[i])
		}
	}
	step := niceStep(most / 4)
	most = math.Ceil(most/step) * step
	atX := func(x float64) float64 {
		return left + (width-left-right)*math.Log(x/first)/math.Log(last/first)
	}
	atY := func(y float64) float64 { return height - bottom - (height-top-bottom)*y/most }
	for y := 0.0; y <= most; y += step {
		d.line(left, atY(y), width-right, atY(y), "grid")
		d.text(left-8, atY(y)+4, "", "end", number0(y))
	}
	for _, x := range c.Lines[0].X {
		d.text(atX(x), height-bottom+18, "", "middle", number0(x))
	}
	d.text((left+width-right)/2, height-10, "", "middle", c.X)
	d.text(20, top-18, "", "start", c.Unit)
	for i, l := range c.Lines {
		var points []string
		for k := range l.X {
			points = append(points, fmt.Sprintf("%.1f,%.1f", atX(l.X[k]), atY(l.Y[k])))
			fmt.Fprintf(d, `<circle cx="%.1f" cy="%.1f" r="3.5" class="c%d"/>`+"\n", atX(l.X[k]), atY(l.Y[k]), i)
		}
		fmt.Fprintf(d, `<polyline points="%s" class="c%d line"/>`+"\n", strings.Join(points, " "), i)
	}
	// The names stand at the lines' ends, and not on one another.
	ends := make([]float64, len(c.Lines))
	for i, l := range c.Lines {
		ends[i] = atY(l.Y[len(l.Y)-1]) + 4
		for k := range i {
			if math.Abs(ends[i]-ends[k]) < 16 {
				ends[i] = ends[k] + math.Copysign(16, ends[i]-ends[k])
			}
		}
		d.text(width-right+10, ends[i], fmt.Sprintf("c%d", i), "start", l.Name)
	}
	return d.end()
}

// niceStep is 1, 2 or 5 times a power of ten, not below v.
func niceStep(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, factor := range []float64{1, 2, 5} {
		if factor*power >= v {
			return factor * power
		}
	}
	return 10 * power
}

// plotTargets draws how far each target is reached: a bar that passes the mark has
// reached it.
func plotTargets(figures []Figure) string {
	const width, left, right, top, step = 940, 450, 150, 62, 26
	const most = 2.0 // times the target; a longer bar is cut
	height := top + step*len(figures) + 20
	d := newDrawing(width, height, "How far each target is reached")
	scale := float64(width-left-right) / most
	for i, f := range figures {
		y := float64(top + step*i)
		part := f.Reached() / f.Target.Least
		if f.Target.Least == 0 {
			part = f.Target.Most / max(f.Reached(), f.Target.Most/100)
		}
		class := "c0"
		if !f.Met() {
			class = "c1"
		}
		d.text(left-10, y+14, "", "end", f.title())
		fmt.Fprintf(d, `<rect x="%d" y="%.1f" width="%.1f" height="%d" class="%s"/>`+"\n", left, y+2, min(part, most)*scale, step-9, class)
		d.text(width-right+10, y+14, "", "start", f.reachedText())
	}
	d.line(left+scale, top-8, left+scale, float64(height-14), "mark")
	d.text(left+scale, top-14, "", "middle", "target")
	return d.end()
}

// title is the figure's name, and what it is compared with where that is its point.
func (f Figure) title() string {
	if f.Target.Of == "ratio" {
		return f.Name + " / " + f.Other.Name
	}
	return f.Name
}

func (f Figure) reachedText() string {
	switch f.Target.Of {
	case "ratio":
		return number(f.Ratio()) + " times"
	case "added":
		return "adds " + number(f.Reached()) + " " + f.Unit
	default:
		return number(f.Reached()) + " " + f.Unit
	}
}
