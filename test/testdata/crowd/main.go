// Command crowd opens many connections to a host: some wait, having asked for
// something once, while others ask all the time. In the midst of it one asks for
// /measure. It prints the first thing that fails.
//
//	crowd HOST h2|http/1.1 WAITING BUSY
package main

import (
	"fmt"
	"os"
	"strconv"
	"sync"
)

const (
	atOnce = 50 // connections that are being opened
	rounds = 20 // requests of each that is busy
)

func main() {
	host, protocol := os.Args[1], os.Args[2]
	waiting, busy := make([]client, number(os.Args[3])), make([]client, number(os.Args[4]))
	begin := func(c *client) {
		must(c.open(host, protocol))
		must(c.get("/"))
	}
	each(waiting, begin)
	each(busy, begin)
	var all, half sync.WaitGroup
	half.Add(len(busy))
	for _, c := range busy {
		all.Go(func() {
			for i := range rounds {
				if i == rounds/2 {
					half.Done()
				}
				must(c.get("/"))
			}
		})
	}
	half.Wait()
	var witness client
	must(witness.open(host, protocol))
	must(witness.get("/measure"))
	all.Wait()
	each(waiting, func(c *client) { must(c.get("/")) })
}

// each does something for each client, for some at once.
func each(clients []client, do func(*client)) {
	slots := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for i := range clients {
		slots <- struct{}{}
		all.Go(func() {
			do(&clients[i])
			<-slots
		})
	}
	all.Wait()
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	must(err)
	return n
}

func must(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
