package grant

import (
	"slices"
	"strings"
)

// Partition is a part of AWS with accounts, regions and host names of its own.
type Partition struct {
	Name          string   // as in ARNs: "aws", "aws-cn"
	Suffixes      []string // of its endpoints' names: "amazonaws.com"
	DefaultRegion string

	areas []string // that the names of its regions begin with: "us", "cn"
}

// HasRegion reports whether a region's name has the form of this partition's.
// Regions are added without notice, so there is no list of them.
func (p Partition) HasRegion(region string) bool {
	return slices.ContainsFunc(p.areas, func(area string) bool {
		rest, ok := strings.CutPrefix(region, area+"-")
		place, number, _ := strings.Cut(rest, "-")
		return ok && made(place, lower+digits, 1, 32) && made(number, digits, 1, 3)
	})
}

// partitions are those that the SDK knows (partitions.json).
var partitions = []Partition{
	newPartition("aws", "us-east-1", "us eu ap sa ca me af il mx", "amazonaws.com", "api.aws"),
	newPartition("aws-cn", "cn-northwest-1", "cn", "amazonaws.com.cn"),
	newPartition("aws-us-gov", "us-gov-west-1", "us-gov", "amazonaws.com"),
	newPartition("aws-iso", "us-iso-east-1", "us-iso", "c2s.ic.gov"),
	newPartition("aws-iso-b", "us-isob-east-1", "us-isob", "sc2s.sgov.gov"),
	newPartition("aws-iso-e", "eu-isoe-west-1", "eu-isoe", "cloud.adc-e.uk"),
	newPartition("aws-iso-f", "us-isof-south-1", "us-isof", "csp.hci.ic.gov"),
	newPartition("aws-eusc", "eusc-de-east-1", "eusc-de", "amazonaws.eu"),
}

// newPartition makes a row. The SDK's pattern ends in \w+; a region's name becomes
// part of a host name, so here it is what real ones are made of.
func newPartition(name, region, areas string, suffixes ...string) Partition {
	return Partition{
		Name:          name,
		Suffixes:      suffixes,
		DefaultRegion: region,
		areas:         strings.Fields(areas),
	}
}

func findPartition(match func(Partition) bool) (Partition, bool) {
	i := slices.IndexFunc(partitions, match)
	if i < 0 {
		return Partition{}, false
	}
	return partitions[i], true
}

func partitionNamed(name string) (Partition, bool) {
	return findPartition(func(p Partition) bool { return p.Name == name })
}

func partitionOf(region string) (Partition, bool) {
	return findPartition(func(p Partition) bool { return p.HasRegion(region) })
}
